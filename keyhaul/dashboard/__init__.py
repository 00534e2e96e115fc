"""The network on one page: a map that lives, faults in words, and what to do about them.

A `Source` says how things stand (`local`: this node; `federated`: all nodes of a testbed, or some by their
admin ports). `pages` serves it, with the page itself, to whoever the port lets in: operators with a
certificate at a node's admin port, or a person at this machine with the one-time token of `door`.
"""
