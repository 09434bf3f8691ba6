mod dead_letters;
mod figures;
mod users;
