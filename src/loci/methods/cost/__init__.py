"""Cost models: how long a piece of work takes on a machine, said in advance."""
