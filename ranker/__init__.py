"""(user, query, candidates) become scores: TorchRec models over frames from the feature store."""
