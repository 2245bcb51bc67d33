"""Operations on a whole vault: backup, restore, transfer, recovery of the master key."""
