# The page makes all it needs.
