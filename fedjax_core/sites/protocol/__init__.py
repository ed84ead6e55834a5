"""What a coordinator and its sites say to each other: the kinds of requests, and what is in requests, reports
and descriptions."""
