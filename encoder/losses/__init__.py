"""What training minimises: contrastive losses, their negatives and weights; one formula per file."""
