"""Agents that put delivered keys to use: two of them, one at each end, keep a program in fresh keys.

One is the initiator: it asks its node for a key, tells the other agent the key's id, and both hand the bits
to a program. `agreement.py` has the order of the steps, `channel.py` how the ids travel, `port.py` what a
program has to offer; each program has a module of its own.
"""
