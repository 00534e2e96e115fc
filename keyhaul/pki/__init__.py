"""Certificates on disk: who makes them, renews them, exchanges their CAs, and says what there is."""

from keyhaul.pki.parties import ROLES, Files, Lifetimes, Pki, file_name

__all__ = ["ROLES", "Files", "Lifetimes", "Pki", "file_name"]
