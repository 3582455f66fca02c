"""What the library costs, beside what is physically possible and beside its peers: ratios of one run, never times."""
