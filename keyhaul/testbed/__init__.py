"""Networks in a box: simulated QKD devices that are honest ETSI GS QKD 014 servers, and what joins them."""
