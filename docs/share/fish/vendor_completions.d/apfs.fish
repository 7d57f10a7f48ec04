# Found by fish below PREFIX/share; the script is that of the installed version.
apfs completion fish | source
