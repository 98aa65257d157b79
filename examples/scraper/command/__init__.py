"""The command line, and the jobs that it keeps.

- `cli`: reads the command line; `work`: works on a job until it ends or is interrupted.
- `job`: a crawl in a folder; `resuming`: which settings may change.
- `status`: prints the progress of a job from another process; `mirror`: a separate program, a race.
"""
