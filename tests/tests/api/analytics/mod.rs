mod figures;
mod users;
