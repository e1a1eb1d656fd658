"""What a batch depends on beside its job: random generators, from seeds to states, and the states of datasets."""
