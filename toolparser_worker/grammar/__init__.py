"""From a format's declaration and a request's tools to the grammar that the output has to follow."""
