"""keyhaul: key delivery across federations of quantum key distribution networks."""

__version__ = "0.1.0"
