"""The patent notice of scheme `blind`, shown wherever somebody enables it."""

from __future__ import annotations

NOTICE = (
    "Scheme 'blind' follows the method of zero-trust QKD relays published by Tecnalia Research & Innovation "
    "and the University of the Basque Country (UPV/EHU). They state that it has been registered as a patent "
    "request at the European Patent Office under the application number EP24383397.7. Whether you need a "
    "licence to use it is for you to find out; keyhaul grants none. Scheme 'masked' protects against the "
    "same relays without homomorphic encryption."
)
