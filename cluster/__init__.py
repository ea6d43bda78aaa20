class ClusterError(ValueError):
    """Something about the cluster that the user can put right: an address, a token, a size. The
    message is one line.
    """
