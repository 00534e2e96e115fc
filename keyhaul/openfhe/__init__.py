"""OpenFHE in a process of its own, under whatever interpreter can load it; nothing of it in this process.

The wheels of OpenFHE hold code for one version of CPython each, hostile bytes kill its deserialiser, and
its generator of randomness is copied by fork(). So a worker is started afresh, talks over pipes, has a
limit on memory and time, and may die: the next call starts another.
"""

from keyhaul.openfhe.sidecar import OpenFhe as OpenFhe
from keyhaul.openfhe.sidecar import Timed as Timed
from keyhaul.openfhe.sidecar import WorkerDied as WorkerDied
