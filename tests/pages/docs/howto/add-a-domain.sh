# Both nodes are given a passphrase that somebody has chosen.
(umask 077; echo "correct horse" > passphrase)
