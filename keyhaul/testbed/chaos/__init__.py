"""Real processes under real faults, with every promise checked: what `keyhaul chaos` runs.

`wires` stands between the nodes and delays, loses, slows and cuts; `people` are the applications that ask
and fetch all the while and write a `keyhaul.testbed.history`; `faults` is what is done to nodes, devices,
disks, certificates and ports; `campaign` does it all in turn and reports.
"""
