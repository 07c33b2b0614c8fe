"""Choosing a subset: rows in, row indices out, in the order taken.

Pure functions on arrays. None reads a file, knows a method or builds a table of rows times rows, but of a few thousand.

| module | chooses |
|---|---|
| ``kcenter`` | the row farthest from all chosen ones, again and again |
| ``facility`` | the rows that together stand for all rows best |
| ``partitioned`` | in random parts, of more rows than one of these two can take |
| ``kmeans`` | an equal share of each cluster; anchors |
| ``diverse`` | in a given order, what is not too similar to what was kept |
| ``coverage`` | the rows that show the most tags not yet seen |
| ``robin`` | the rows nearest to queries or tasks, in turns |
| ``neighbours`` | for each row the other rows most like it |
| ``tokens`` | the tokens whose NLL the prompt changes most |
"""
