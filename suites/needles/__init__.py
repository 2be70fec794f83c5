"""Things hidden in a haystack of prose and asked for at its end: what `needle` and `ruler` share.

draw.py       keys and values from generators of our own: numbers, made-up words, UUIDs
forms.py      what a needle says, how it is asked for, what an answer looks like
haystack.py   prose of the text that was named, cut at token counts without encoding all of it again
compose.py    head, prose with its needles, question -> ids, and where each character lies in them
"""
