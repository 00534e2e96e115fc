"""Measures a real network of processes on this machine; `keyhaul bench NAME` runs one of these modules."""
