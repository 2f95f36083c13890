"""The former name of evaluate_patch_hit.py with several --model; takes the same flags."""

from evaluate_patch_hit import main

if __name__ == "__main__":
    main()
