"""A page for people who do not write YAML: from a model and a file of rows to a winner that one
talks with. All that it does is a command that it shows.
"""
