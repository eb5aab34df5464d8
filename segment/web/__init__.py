"""The HTTP interface: requests in, responses, the page and the OpenAPI document out."""
