"""What our own networks are trained on: prose, hidden sentences, dense recall (`mix.py`), or plain text."""
