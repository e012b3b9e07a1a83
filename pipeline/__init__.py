"""The experiment pipeline around `tood`: Ray Train and Tune, MLflow, object storage."""
