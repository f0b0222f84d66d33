"""What clients may send over HTTP, as pydantic models and field tables."""
