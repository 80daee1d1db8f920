"""What every wing shares: configurations, files, digests, processes."""
