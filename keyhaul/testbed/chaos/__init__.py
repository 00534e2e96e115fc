"""Real processes under real faults, with every promise checked: what `keyhaul chaos` runs.

`wiring` says what may happen between two nodes; `packets` does it to packets between `namespaces`, by the
process `fabric`, and `wires` to byte streams on loopback, without privileges. `people` are the applications
that ask and fetch all the while and write a `keyhaul.testbed.history`; `faults` is what is done to nodes,
devices, disks, certificates and ports; `campaign` does it all in turn, and `report` says what came of it.
"""
