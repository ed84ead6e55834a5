"""The protocol between a coordinator and its sites: kinds of requests, and the contents of requests, reports
and descriptions."""
