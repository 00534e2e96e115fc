(umask 077; echo "correct horse" > passphrase)
