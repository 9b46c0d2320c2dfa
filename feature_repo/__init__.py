"""The feature repository: definitions for ``feast apply``, offline sources, online reads, ingestion, frames."""
