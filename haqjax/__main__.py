"""python -m haqjax."""

from haqjax.cli import main

main()
