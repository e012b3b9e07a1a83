"""How long the parts of training and detection take. `python -m tood.bench` measures them where only torch is installed.

timing.py  calls in turn, medians, ratios;  parts.py  the parts of a recipe's training;  cases.py  fixed cases, to compare machines
and versions;  growth.py  how cost grows;  report.py  tables, machine, profiles;  command.py  arguments
"""
