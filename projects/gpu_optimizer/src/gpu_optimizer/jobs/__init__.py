"""What the service has done in processes of their own, and the store of these jobs."""
