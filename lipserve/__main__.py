from lipserve.cli import main

main()
