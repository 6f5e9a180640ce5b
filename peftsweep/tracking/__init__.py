"""MLflow: one run a job. A job never fails or waits for long because of tracking; what is missed is imported later."""
