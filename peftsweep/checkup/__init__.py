"""What `peftsweep doctor` looks at: whether this machine can do what peftsweep does, and how well."""
