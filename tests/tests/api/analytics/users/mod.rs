mod signups;
