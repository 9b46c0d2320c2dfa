"""Score the candidates of a request: TorchRec models over frames from the feature store."""
