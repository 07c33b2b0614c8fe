"""Choosing a subset: rows in, row indices out, in the order taken.

Pure functions on arrays. None reads a file, knows a method or builds a table of rows times rows.

| module | chooses |
|---|---|
| ``kcenter`` | the row farthest from all chosen ones, again and again |
| ``facility`` | the rows that together stand for all rows best |
| ``partitioned`` | in two stages what one of these two would choose, of more rows than it can take |
| ``kmeans`` | an equal share of each cluster; anchors |
| ``diverse`` | in a given order, what is not too similar to what was kept |
| ``coverage`` | the rows that show the most tags not yet seen |
| ``robin`` | the rows nearest to queries or tasks, in turns |
| ``neighbours`` | for each row the other rows most like it |
| ``tokens`` | the tokens whose NLL the prompt changes most |
"""
