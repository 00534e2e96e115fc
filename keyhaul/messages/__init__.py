"""What travels over each interface, as frozen values with their codecs; nothing here does I/O."""
