"""What paper A printed, for comparison: typed from its Tables III and IV and its text, never measured here.

Interconnecting regional QKD networks (paper A), section VI: eight nodes, four real QKD links, on demand.
"""

from __future__ import annotations

SOURCE = "paper A, section VI"

KEY_RATE: tuple[tuple[float | None, ...], ...] = (
    (None, 2625.7, 2472.4, 2457.0, 2513.1, 2426.9, 2466.9, 2511.3),
    (2512.1, None, 2408.2, 2341.2, 2436.8, 2375.1, 2391.4, 2320.0),
    (2314.5, 2255.6, None, 2767.0, 2454.5, 2355.0, 2349.2, 2248.91),
    (1921.3, 1790.4, 1380.3, None, 1767.4, 1904.1, 1834.2, 1895.3),
    (368.6, 352.3, 370.9, 356.3, None, 381.0, 333.2, 346.1),
    (531.8, 541.6, 492.4, 500.5, 489.3, None, 469.1, 480.5),
    (2362.2, 2360.3, 2419.6, 2316.1, 2402.7, 509.5, None, 2276.8),
    (2045.9, 1998.3, 1980.0, 2000.4, 1843.1, 1978.4, 1881.6, None),
)
"""Table III: mean key rate in bits/s from each node (row) to each node (column), 100 requests in a row.

The 509.5 from node 7 to node 6 is as printed; its neighbours and its deviation suggest 2,509.5.
"""

KEY_RATE_DEVIATION: tuple[tuple[float | None, ...], ...] = (
    (None, 417.6, 277.3, 177.8, 244.9, 247.8, 245.1, 260.7),
    (503.2, None, 279.6, 257.6, 268.2, 233.3, 383.7, 367.2),
    (598.0, 573.5, None, 810.5, 612.7, 573.9, 509.7, 567.7),
    (322.1, 358.2, 217.9, None, 363.7, 323.8, 352.7, 316.8),
    (35.6, 42.3, 29.6, 46.6, None, 45.3, 48.9, 38.7),
    (66.4, 82.9, 72.0, 74.7, 80.8, None, 116.7, 93.94),
    (454.7, 477.6, 655.5, 533.1, 509.5, 526.0, None, 399.4),
    (303.0, 292.8, 360.0, 314.9, 269.5, 349.6, 269.8, None),
)
"""Table III: the standard deviations."""

DELAY: tuple[tuple[float, float, float, float], ...] = (
    (5.5104, 42.079, 23.804, 102.661),
    (8.958, 53.33, 30.989, 106.473),
    (29.870, 78.944, 38.147, 110.638),
    (25.492, 91.555, 51.863, 140.890),
    (52.931, 359.525, 226.620, 704.282),
    (27.592, 724.589, 656.137, 496.933),
    (25.905, 67.390, 37.387, 114.441),
    (19.395, 59.999, 33.593, 131.394),
)
"""Table IV, in ms, per node: jitter median, jitter 95th percentile, 95th percentile of the rolling standard
deviation, median latency. The window of the deviation is not stated; that of Figure 6 is four samples."""

WINDOW = 4
"""Samples of the moving window of Figure 6."""
