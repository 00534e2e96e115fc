"""Probes of any key manager, ours or another maker's, against ETSI GS QKD 014 and 020, clause by clause."""
