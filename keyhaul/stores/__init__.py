"""Where a node keeps what it must not lose: durable ledgers, and the sealing of the root under them."""
