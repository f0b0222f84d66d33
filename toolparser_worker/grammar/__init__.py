"""From a format's declaration and a request's tools to the grammar of the output."""
