# The page's DIR is a testbed that runs.
ln -s "$SHARED" DIR
