"""Several engines behind the contract of one, in processes that Ray places on this host or on a cluster."""
