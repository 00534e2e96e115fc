# The tutorial makes all it needs.
